"""What clients did to registers of the product, and whether any order of it explains what they were told."""
