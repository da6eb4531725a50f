-- Pages of lists that cost the same wherever they begin.

create index fine_tuned_models_listed on fine_tuned_models (organization, created_at, name);
create index model_permissions_listed on model_permissions (organization, model, created_at, id);
