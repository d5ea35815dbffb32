"""The test bed: whole hosts on this machine, for the playbooks and the runner's service, thrown away after each test.

    box.py      a Debian 12 or 13 host in a container: its own systemd, sshd and address, up in about a second
    vm.py       a Debian 13 machine with its own kernel under emulation: real reboots, cgroup controllers, slow
    host.py     what both can do: ssh, run, put, inventory, reboot, close
    runs.py     one user of the bed: a number from which every name comes, and a lock that says whether it lives
    network.py  the bridge and the way out      cgroups.py  one control group per host
    archive.py  an apt repository of stand-in packages
    base.py     the trees they start from, built once       sources.py  this machine's mirrors, proxy, authorities

By hand, as root, until Ctrl-C: `cd tests && python3 -m bed.box bookworm` or `python3 -m bed.vm`.
In tests: the fixtures of tests/hosts.py. Standard library alone.
"""
