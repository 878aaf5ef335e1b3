"""What happens to an image: ingest, propose, verify, assign, rewrite."""
