/* stamp FILE MS: append "start end\n" (CLOCK_MONOTONIC, ns), sleeping MS milliseconds in between. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

int main(int count, char **words) {
    long long start = now();
    if (count < 3) return 2;
    long pause = atol(words[2]);
    struct timespec length = {pause / 1000, pause % 1000 * 1000000L};
    nanosleep(&length, 0);
    int file = open(words[1], O_WRONLY | O_APPEND | O_CREAT, 0644);
    char line[64];
    int length_of_line = snprintf(line, sizeof line, "%lld %lld\n", start, now());
    return write(file, line, length_of_line) == length_of_line ? 0 : 1;
}
