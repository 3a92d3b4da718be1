"""top: what the system does now, or did while it was recorded.

As htop does for Linux: a tree of control groups and processes, the devices and the tiers of their memory, pressure, and
the past of every rate, to be sorted, filtered and acted upon. textual draws the screen (widgets, mouse, every kind of
terminal); what is drawn is made by functions that know no terminal:

    sample.py   five system calls, once an interval      live.py     the thread that makes them
    model.py    samples -> rates and their past          record.py   samples in a file;  player.py: played again
    tree.py     -> the lines of the table                panel.py    -> the lines above it
    columns.py  what each column shows, and which fit    spark.py    sparklines
    plain.py    one look in plain text
    app.py      the screen: table.py, filter.py, events.py, timeline.py, footer.py, details.py, screens.py
    keys.py     what each key does                       driver.py   the terminal;  main.py: where it starts
"""
