"""Everything that judges: previews, health, the teacher, the LoRA file."""
