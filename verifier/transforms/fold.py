def fold(graph):
    return graph
