"The HTTP side of serving: the protocol and the page."
