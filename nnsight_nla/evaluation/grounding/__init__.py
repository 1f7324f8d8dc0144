"""Compare explanations with the text their vectors were read in: is what they say true?"""
