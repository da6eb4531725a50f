-- Checkpoints of jobs that serve as models, who else may use a model, and jobs by their metadata.

-- A checkpoint is a fine-tuned model with these three; so it is leased, listed, deleted and swept as every other one is.
alter table fine_tuned_models
    add column checkpoint text unique,                          -- ftckpt_…
    add column step       bigint,
    add column metrics    jsonb,
    add constraint checkpoint_is_whole check (num_nulls(checkpoint, step, metrics) in (0, 3));
create index fine_tuned_models_checkpoints on fine_tuned_models (organization, job, step) where step is not null;

-- An organisation's leave to use a model of another one. It goes with the model.
create table model_permissions (
    id           text        primary key,                       -- cp_…
    organization text        not null,                          -- the model's owner
    model        text        not null,
    project_id   text        not null,                          -- the organisation that may use it
    created_at   timestamptz not null default now(),
    unique (organization, model, project_id),
    foreign key (organization, model) references fine_tuned_models (organization, name) on delete cascade
);
create index model_permissions_of_project on model_permissions (project_id, model);

create index jobs_metadata on jobs using gin ((spec->'metadata') jsonb_path_ops);
