-- Batch, done: the numbers of the lines of the batch $1 that have a result.
select line from batch_results where batch = $1
