"""Texts and tables for people: plain columns, and the tables that README.md and the documentation contain."""
