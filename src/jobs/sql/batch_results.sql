-- Batch, results: up to $3 results of the batch $1 after the line $2.
select line, succeeded, content from batch_results where batch = $1 and line > $2 order by line limit $3
