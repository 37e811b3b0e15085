"""Pictures in and out: decoded, fetched, stored."""
