"""What nodes ask of a cache all day, asked of this one and of others, in turns."""
