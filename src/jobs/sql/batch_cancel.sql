-- Batch, cancel: asks that the batch $2 of the organisation $1 ends, if its files are not being made yet.
update batches set status = 'cancelling', cancelling_at = now()
 where organization = $1 and id = $2 and status in ('validating', 'in_progress')
