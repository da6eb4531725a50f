-- Batch, finalize: every line of the batch $1 has a result; its files are made now.
update batches set status = 'finalizing', finalizing_at = now()
 where key = $1 and attempt = $2 and status = 'in_progress'
