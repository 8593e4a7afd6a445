"""Tells human-made artworks from AI-generated ones at scale. 0 = AI, 1 = Real, everywhere.

The folders are the data's way: images → models → scoring | training → evaluation. Importing this package imports
neither torch nor ray: both are imported where they are used.
"""
