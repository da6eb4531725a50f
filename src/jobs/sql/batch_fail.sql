-- Batch, fail: the input file of the batch $1 is no batch, for the reasons $3.
update batches set status = 'failed', errors = $3, model = $4, failed_at = now(), lease_owner = null, lease_expires_at = null
 where key = $1 and attempt = $2 and status = 'validating'
