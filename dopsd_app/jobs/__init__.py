"""Everything that takes long: folder, queue, worker, events."""
