-- A results database of schema 1, as the release that brought it wrote it. It has to open for ever: never edit it.
PRAGMA application_id = 1414679636;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE campaigns (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  started TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('running', 'interrupted', 'finished')),
  source TEXT NOT NULL,
  version TEXT NOT NULL,
  board TEXT NOT NULL,
  plan TEXT NOT NULL,
  writer TEXT NOT NULL
);
INSERT INTO "campaigns" VALUES(1,'2026-11-22T10:00:00+03:00','finished','trilithon','0.1.0','{"cpus":2}','{"r":[1]}','');
INSERT INTO "campaigns" VALUES(2,'2026-11-22T10:00:00+03:00','running','trilithon','0.1.0','{"cpus":2}','{"r":[1]}','6d0c0d0e-0000-4000-8000-000000000000 4242 1000');
CREATE TABLE placements (
  id INTEGER PRIMARY KEY,
  campaign_id INTEGER NOT NULL REFERENCES campaigns (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  engine TEXT NOT NULL,
  build TEXT NOT NULL,
  build_version TEXT NOT NULL,
  unit TEXT NOT NULL,
  model TEXT NOT NULL,
  settings TEXT NOT NULL,
  must_match TEXT NOT NULL,
  bandwidth_bytes_per_second REAL,
  UNIQUE (campaign_id, name)
);
INSERT INTO "placements" VALUES(1,1,'scripted/cpu','scripted','wheel','1.0','cpu','{"name":"tiny","size_bytes":123,"parameters":null}','{"threads":2,"cpus":[0,1],"options":[]}','{"board":"PC","kernel":"6.1"}',2.14285714285714292532e+09);
INSERT INTO "placements" VALUES(2,2,'scripted/cpu','scripted','wheel','1.0','cpu','{"name":"tiny","size_bytes":123,"parameters":null}','{"threads":2,"cpus":[0,1],"options":[]}','{"board":"PC","kernel":"6.1"}',2.14285714285714292532e+09);
CREATE TABLE quality (
  placement_id INTEGER PRIMARY KEY REFERENCES placements (id) ON DELETE CASCADE,
  verdict TEXT NOT NULL,
  reference TEXT NOT NULL,
  positions INTEGER NOT NULL,
  divergence REAL,
  divergence_prefill REAL,
  divergence_decode REAL,
  agreement REAL,
  perplexity REAL,
  reasons TEXT NOT NULL
);
INSERT INTO "quality" VALUES(1,'broken','scripted/cpu',32,9.1,NULL,3.00000000000000044408e-01,3.33333333333333314829e-01,9e999,'["looping","not text"]');
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  placement_id INTEGER NOT NULL REFERENCES placements (id) ON DELETE CASCADE,
  round INTEGER NOT NULL,
  started TEXT NOT NULL,
  started_ns INTEGER NOT NULL,
  finished_ns INTEGER,
  outcome TEXT CHECK (outcome IN ('finished', 'failed', 'skipped')),
  failure TEXT,
  warnings TEXT NOT NULL DEFAULT '[]',
  log BLOB,
  writer TEXT NOT NULL
);
INSERT INTO "runs" VALUES(1,1,0,'2026-11-22T10:00:00+00:00',10,100,'finished',NULL,'["throttled"]',X'789CCBC94F4CB152C8CFE60200101B02DF','6d0c0d0e-0000-4000-8000-000000000000 4242 1000');
INSERT INTO "runs" VALUES(2,1,1,'2026-11-22T10:00:00+00:00',110,120,'failed','{"kind":"died","message":"died: SIGSEGV","cause":"segmentation fault","advice":"","last_words":["a","\u0431"]}','[]',X'789C4BAA4C5578BB793F000CF003C0','6d0c0d0e-0000-4000-8000-000000000000 4242 1000');
INSERT INTO "runs" VALUES(3,2,0,'2026-11-22T10:00:00+00:00',5,NULL,NULL,NULL,'[]',NULL,'6d0c0d0e-0000-4000-8000-000000000000 4242 1000');
CREATE TABLE samples (
  id INTEGER PRIMARY KEY,
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  test_kind TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  generated_tokens INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  question TEXT NOT NULL,
  started_ns INTEGER NOT NULL,
  finished_ns INTEGER NOT NULL,
  prompt_evaluated INTEGER,
  prompt_cached INTEGER,
  prompt_ns INTEGER,
  decode_steps INTEGER,
  decode_ns INTEGER,
  thinking_at_ns TEXT NOT NULL,
  answer_at_ns TEXT NOT NULL,
  thinking_text TEXT NOT NULL,
  answer_text TEXT NOT NULL,
  stop_reason TEXT NOT NULL,
  marks TEXT NOT NULL
);
INSERT INTO "samples" VALUES(1,1,'pp',512,0,0,'""',4611686018427387904,4611686018427387911,512,NULL,7,NULL,NULL,'[]','[]','""','""','""','{}');
INSERT INTO "samples" VALUES(2,1,'question',0,0,0,'"\u0440\u0430\u0441\u0441\u043a\u0430\u0436\u0438 \u043f\u0440\u043e \u77f3\u5934"',1,99,NULL,NULL,NULL,NULL,NULL,'[2,3]','[4,50,98]','"hm\u0000m"','"half a pair: \ud83d"','"stop"','{"load_cold_ns":5}');
CREATE INDEX runs_of_placement ON runs (placement_id);
CREATE INDEX samples_of_run ON samples (run_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('campaigns',2);
COMMIT;
