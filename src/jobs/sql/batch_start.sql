-- Batch, start: the lines of the batch $1 are right: $3 of them, for the model $4.
update batches set status = 'in_progress', total = $3, model = $4, in_progress_at = now()
 where key = $1 and attempt = $2 and status = 'validating'
