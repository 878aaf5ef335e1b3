"""Where answers come from: HTTP servers, batch files, a model in this process, a script."""
