"""The embedded default data: generated patients in Decathlon layout. Phantoms, not patient data."""
