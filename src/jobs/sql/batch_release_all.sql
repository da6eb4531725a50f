-- Batch, release all: for the start of a process that has the database to itself.
update batches set lease_owner = null, lease_expires_at = null, attempt = attempt + 1 where lease_expires_at is not null
