CREATE TABLE answers (
  id INTEGER PRIMARY KEY,
  placement_id INTEGER NOT NULL REFERENCES placements (id) ON DELETE CASCADE,
  question_set TEXT NOT NULL,
  set_digest TEXT NOT NULL,
  question TEXT NOT NULL,
  text TEXT NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('correct', 'wrong', 'unscored')),
  kind TEXT NOT NULL,
  language TEXT NOT NULL,
  expected TEXT NOT NULL,
  answer TEXT NOT NULL,
  thinking TEXT NOT NULL,
  reason TEXT NOT NULL,
  stop_reason TEXT NOT NULL,
  tokens INTEGER NOT NULL,
  seconds REAL NOT NULL,
  UNIQUE (placement_id, question)
);
