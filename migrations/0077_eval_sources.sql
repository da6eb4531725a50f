-- Runs of evals over stored answers, and runs that ask several models.

alter table eval_runs
    add column models text[],                           -- that answer, if there are several; then `model` is null
    add column inputs text[];                           -- ids of the stored answers that are the items, fixed when it was made
-- Where several models answer, `eval_output_items.number` counts answers: place of the item * models + place of the model.

create index responses_made on responses (organization, created_at, id);
