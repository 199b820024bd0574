-- What a ledger of revision 0002 had in it: a run that has ended, one that a worker holds on a GPU, one in line that was
-- moved in front of the others.
INSERT INTO job (id, seq, place, name, owner, state, priority, config, metadata, source, model_type, start_step,
    training_steps, step, train_loss, val_loss, checkpoint, attempt, failures_in_a_row, fence, heartbeat, worker_id,
    last_seq, thinned_seq, created_at, started_at, finished_at, idempotency_key, request_hash)
VALUES ('job_ended', 1, 1048576, 'ended', 'local', 'succeeded', 0, '{"source": "tale.md", "training_steps": 20}',
    '{"team": "red"}', 'tale.md', 'from_scratch', 0, 20, 20, 1.5, 1.75, 'c1', 1, 0, 1, 4, 'w1', 5, 5, 1000, 1001, 1010,
    'key', 'hash');
INSERT INTO job (id, seq, place, name, owner, state, priority, config, metadata, source, model_type, parent_job,
    parent_checkpoint, resume_mode, start_step, training_steps, step, attempt, failures_in_a_row, fence, heartbeat,
    worker_id, device, last_seq, created_at, started_at)
VALUES ('job_held', 2, 2097152, 'held', 'local', 'running', 5, '{"source": "tale.md", "training_steps": 20}', '{}',
    'tale.md', 'from_scratch', 'job_ended', 'c1', 'extend', 20, 20, 25, 1, 0, 1, 9, 'w1', 'GPU-a', 3, 1020, 1021);
INSERT INTO job (id, seq, place, name, owner, state, priority, config, metadata, source, model_type, start_step,
    training_steps, step, attempt, failures_in_a_row, fence, heartbeat, last_seq, created_at)
VALUES ('job_queued', 3, 524288, 'queued', 'local', 'queued', 0, '{"source": "tale.md", "training_steps": 20}', '{}',
    'tale.md', 'from_scratch', 0, 20, 0, 0, 0, 0, 0, 1, 1030);

INSERT INTO event (job_id, seq, kind, attempt, created_at, data) VALUES
    ('job_ended', 1, 'state', 0, 1000, '{"state":"queued","attempt":0}'),
    ('job_ended', 2, 'step', 1, 1002, '{"step":20,"loss":1.5}'),
    ('job_ended', 3, 'checkpoint', 1, 1003, '{"step":20,"id":"c1","name":"checkpoint_c1"}'),
    ('job_ended', 4, 'state', 1, 1010, '{"state":"succeeded","attempt":1}'),
    ('job_ended', 5, 'done', 1, 1010, '{"state":"succeeded"}'),
    ('job_held', 1, 'state', 0, 1020, '{"state":"queued","attempt":0}'),
    ('job_held', 2, 'state', 1, 1021, '{"state":"running","attempt":1}'),
    ('job_held', 3, 'step', 1, 1022, '{"step":25,"loss":1.25}'),
    ('job_queued', 1, 'state', 0, 1030, '{"state":"queued","attempt":0}');

INSERT INTO checkpoint (id, name, owner, job_id, attempt, step, path, source, model, size_bytes, pinned, created_at)
VALUES ('c1', 'checkpoint_c1', 'local', 'job_ended', 1, 20, 'checkpoint_c1', 'tale.md', 'Bigram', 7, false, 1003);

INSERT INTO worker (id, hostname, pid, version, devices, memory_bytes, capacity, draining, heartbeat, started_at, seen_at)
VALUES ('w1', 'h', 1, '0.1.0', '["cpu"]', 1, 2, false, 9, 990, 1022);
