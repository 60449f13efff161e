"""The commands, one function each: arguments read, the package called, the result printed. Heavy imports inside."""
