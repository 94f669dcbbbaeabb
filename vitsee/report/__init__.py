"""`vitsee report`: an HTML page of results, composed figures and claims."""
