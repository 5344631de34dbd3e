"""Pictures, captions and drafts: what a person brings."""
