"""Makes the pocket audio teacher from recorded instruments. Not part of the installed package."""
