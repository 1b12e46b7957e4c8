"""Small HTML pages beside the report: a ranked table, a comparison, the index of published result sets."""
