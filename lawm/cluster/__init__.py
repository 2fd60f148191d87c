"""Everything that Ray does for lawm, one file per thing; the only package that imports ray."""
