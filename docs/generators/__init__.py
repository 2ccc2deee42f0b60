"""Write the parts of the documentation that repeat what the code says, from the code."""
