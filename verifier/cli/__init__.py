"""The command line. Importing it is cheap: the commands load torch and the engine when they run."""
