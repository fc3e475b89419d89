"""Everything that yields examples: readers, ink, LaTeX labels and batches."""
