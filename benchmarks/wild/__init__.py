"""Students in other people's tools: the cells of the table of front ends."""
