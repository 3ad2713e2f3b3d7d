"""Makes the pocket teacher from photographs. Not part of the installed package."""
