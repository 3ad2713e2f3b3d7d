"""Making the embedded pocket teacher from photographs. Not in the installed package."""
