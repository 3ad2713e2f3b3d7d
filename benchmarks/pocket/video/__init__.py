"""Makes the pocket video teacher from moving photographs. Not part of the installed package."""
