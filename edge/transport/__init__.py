"""How a device is reached: a folder, or ssh. Both run the same script (``agent.sh``) and speak the same lines with it.

:mod:`edge.transport.target` says what the user wrote, :mod:`edge.transport.ways` turns it into a program to start, and
:mod:`edge.transport.session` holds the conversation.
"""
