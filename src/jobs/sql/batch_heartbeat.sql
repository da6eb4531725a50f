-- Batch, heartbeat: keeps the batch $1 for the attempt $2 for $3 seconds more; tells where it stands.
update batches set lease_expires_at = now() + make_interval(secs => $3)
 where key = $1 and attempt = $2 and status in ('validating', 'in_progress', 'finalizing', 'cancelling')
returning status, expires_at <= now() as expired
