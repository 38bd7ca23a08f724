"""Maps and their images in the formats of other tools."""
