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
CREATE INDEX runs_of_placement ON runs (placement_id);
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
CREATE INDEX samples_of_run ON samples (run_id);
