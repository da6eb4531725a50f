-- Batch, create: adds a batch over the file $7, if the organisation $2 has the file and fewer than $9 unfinished batches.
-- Its files are to stay for $10 seconds (null: until they are deleted).
-- The lock on the file lets a deletion of it see the batch, or the batch see that it is gone.
with held as materialized (
    select id from files where organization = $2 and id = $7 and purpose = 'batch' for key share
), unfinished as materialized (
    select count(*) as batches from batches
     where organization = $2 and status in ('validating', 'in_progress', 'finalizing', 'cancelling')
), created as (
    insert into batches (id, organization, api_key, requests_per_minute, tokens_per_minute, endpoint, input_file, metadata,
                         output_lifetime)
    select $1, $2, $3, $4, $5, $6, held.id, $8, $10 from held, unfinished where unfinished.batches < $9
    returning id
)
select unfinished.batches as unfinished, exists (select from held) as held, exists (select from created) as created
  from unfinished
