PRAGMA user_version = 4;
BEGIN TRANSACTION;
CREATE TABLE attempts (
	job_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	ended_at FLOAT, 
	exit_code INTEGER, 
	signal INTEGER, 
	reason VARCHAR, 
	detail VARCHAR NOT NULL, 
	allotted VARCHAR NOT NULL, 
	gpu_peak_bytes INTEGER, 
	PRIMARY KEY (job_id, number), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "attempts" VALUES(1,1,'failed',130.0,131.0,140.0,3,NULL,'exit_code','ValueError: no','[]',NULL);
INSERT INTO "attempts" VALUES(2,1,'running',130.0,132.0,NULL,NULL,NULL,NULL,'','[]',NULL);
CREATE TABLE gpus (
	uuid VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	bus_id VARCHAR NOT NULL, 
	memory_bytes INTEGER, 
	unified BOOLEAN NOT NULL, 
	drained BOOLEAN NOT NULL, 
	first_seen_at FLOAT NOT NULL, 
	last_seen_at FLOAT NOT NULL, 
	stuck VARCHAR, 
	PRIMARY KEY (uuid)
);
CREATE TABLE jobs (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	spec_id INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	user VARCHAR NOT NULL, 
	uid INTEGER NOT NULL, 
	priority INTEGER NOT NULL, 
	group_id INTEGER, 
	array_index INTEGER, 
	params VARCHAR NOT NULL, 
	submitted_at FLOAT NOT NULL, 
	held BOOLEAN NOT NULL, 
	cancel_requested_at FLOAT, 
	not_before FLOAT, 
	attempt INTEGER NOT NULL, 
	retries_used INTEGER NOT NULL, 
	misfires INTEGER NOT NULL, 
	started_at FLOAT, 
	ended_at FLOAT, 
	exit_code INTEGER, 
	signal INTEGER, 
	reason VARCHAR, 
	detail VARCHAR NOT NULL, 
	environment VARCHAR, 
	snapshot VARCHAR, 
	fetched_at FLOAT, 
	outputs_removed_at FLOAT, 
	allotted VARCHAR NOT NULL, 
	gpu_floor_bytes INTEGER, 
	gpu_peak_bytes INTEGER, 
	expected_seconds FLOAT, 
	program VARCHAR NOT NULL, 
	FOREIGN KEY(spec_id) REFERENCES specs (id)
);
INSERT INTO "jobs" VALUES(1,1,'failed','first','ann',1001,0,NULL,NULL,'{}',100.0,0,NULL,NULL,1,0,0,131.0,140.0,3,NULL,'exit_code','ValueError: no',NULL,NULL,NULL,NULL,'[]',NULL,NULL,NULL,'');
INSERT INTO "jobs" VALUES(2,2,'running','','bob',1002,0,2,0,'{"lr": "0.1"}',110.0,0,NULL,NULL,1,0,0,132.0,NULL,NULL,NULL,NULL,'','e1',NULL,NULL,NULL,'[]',NULL,NULL,NULL,'');
INSERT INTO "jobs" VALUES(3,2,'queued','','bob',1002,0,2,1,'{"lr": "0.2"}',110.0,0,NULL,NULL,0,0,0,NULL,NULL,NULL,NULL,NULL,'','e1',NULL,NULL,NULL,'[]',NULL,NULL,NULL,'');
INSERT INTO "jobs" VALUES(4,3,'queued','','ann',1001,0,NULL,NULL,'{}',120.0,1,NULL,NULL,0,0,0,NULL,NULL,NULL,NULL,NULL,'',NULL,NULL,NULL,NULL,'[]',NULL,NULL,NULL,'');
CREATE TABLE keys (
	uid INTEGER NOT NULL, 
	"key" VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	first_id INTEGER NOT NULL, 
	count INTEGER NOT NULL, 
	group_id INTEGER, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (uid, "key")
);
INSERT INTO "keys" VALUES(1001,'key','digest',1,1,NULL,100.0);
CREATE TABLE meta (
	"key" VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('box_id','99b3b18e816f4bd1');
INSERT INTO "meta" VALUES('draining','yes');
CREATE TABLE specs (
	id INTEGER NOT NULL, 
	body VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "specs" VALUES(1,'{"command": ["python", "train.py"], "name": "first", "script": null, "directory": "", "project": "", "snapshot": null, "environment": "auto", "cpus": 2, "memory_bytes": 0, "gpus": 0, "gpu_type": "", "gpu_memory_bytes": 0, "exclusive": false, "gpu_ids": "uuid", "priority": 0, "time_limit": null, "grace": 30.0, "retries": 0, "retry_on": [], "requeue": false, "after": [], "env": {}, "adopts": [], "gpu_uuids": []}');
INSERT INTO "specs" VALUES(2,'{"command": ["python", "sweep.py"], "name": "", "script": null, "directory": "", "project": "", "snapshot": null, "environment": "auto", "cpus": 1, "memory_bytes": 0, "gpus": 0, "gpu_type": "", "gpu_memory_bytes": 0, "exclusive": false, "gpu_ids": "uuid", "priority": 0, "time_limit": null, "grace": 30.0, "retries": 2, "retry_on": [], "requeue": false, "after": [], "env": {}, "adopts": [], "gpu_uuids": []}');
INSERT INTO "specs" VALUES(3,'{"command": ["sh", "-c", "exit 3"], "name": "", "script": null, "directory": "", "project": "", "snapshot": null, "environment": "auto", "cpus": 1, "memory_bytes": 0, "gpus": 0, "gpu_type": "", "gpu_memory_bytes": 0, "exclusive": false, "gpu_ids": "uuid", "priority": 0, "time_limit": 60.0, "grace": 30.0, "retries": 0, "retry_on": [], "requeue": true, "after": [], "env": {}, "adopts": [], "gpu_uuids": []}');
CREATE TABLE tokens (
	id VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	scope VARCHAR NOT NULL, 
	label VARCHAR NOT NULL, 
	user VARCHAR NOT NULL, 
	uid INTEGER NOT NULL, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT, 
	used_at FLOAT, 
	revoked_at FLOAT, 
	parent VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX ix_jobs_snapshot ON jobs (snapshot);
CREATE INDEX ix_jobs_group_id ON jobs (group_id);
CREATE INDEX jobs_by_end ON jobs (state, ended_at, id);
CREATE INDEX jobs_by_program ON jobs (program, ended_at) WHERE program <> '' AND ended_at IS NOT NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',4);
COMMIT;
