"""Code of strangers, run where it can do no harm: chat templates of model files, schemas of clients."""
