"""Which rows, and which targets: pool hygiene, embedding, clustering, quality, sampling, responses."""
