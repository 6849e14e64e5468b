"""Faults of Gradio's script that are mended when it is served.

The script is minified, so each pattern finds the names that it needs, and a test sees that it is found once.
"""

from __future__ import annotations

import re

# It fails to close the stream of an upload's progress and logs an error for each upload. The server ends the
# stream with the upload; the script only has to stop listening.
CLOSES = re.compile(rb"close:\(\)=>\{console\.warn\([`'\"]Method not implemented\.[`'\"]\)\}")
CLOSED = rb"close(){this.onmessage=this.onerror=null;this.readyState=2}"
# It asks for answers to a call only if no stream of answers is open then. The end of one may be on its way at
# that moment, or lost with its connection: the answers would never come, nor those to any later call. So a
# stream that ends, in whatever way, counts as open no more, and where calls are left another one is opened,
# after a second where no answer has said that the stream closes: a proxy may end each at once;
# and what becomes of an older stream says nothing about the present one.
READS = re.compile(
    rb"(?P<start>unclosed_events:(?P<unclosed>\w+),pending_stream_messages:\w+,stream_status:(?P<status>\w+)"
    rb".{1,200}?,(?P<client>\w+)=this;.{1,1000}?===`close_stream`\)\{[^}]{1,100}?)"
    rb"(?P<middle>return\}.{1,1000}?)(?P<stream>\w+)\.onerror=async function\((?P<error>\w+)\)\{"
)
READ = (
    rb"\g<start>\g<unclosed>.size&&\g<client>.open_stream();\g<middle>"
    rb"\g<stream>.onend=()=>{if(\g<client>.stream_instance!==\g<stream>)return;\g<status>.open=!1;"
    rb"setTimeout(()=>{!\g<status>.open&&\g<unclosed>.size&&\g<client>.open_stream()},1e3)},"
    rb"\g<stream>.onerror=async function(\g<error>){"
    rb"if(\g<client>.stream_instance!==\g<stream>)return;\g<status>.open=!1;"
)
ENDS = re.compile(
    rb"(?P<start>for await\(let (?P<message>\w+) of \w+\)(?P<stream>\w+)\.onmessage&&"
    rb"(?P=stream)\.onmessage\((?P=message)\);)(?P=stream)\.readyState=(?P=stream)\.CLOSED"
)
ENDED = rb"\g<start>\g<stream>.readyState=\g<stream>.CLOSED;\g<stream>.onend&&\g<stream>.onend()"
# A call whose answers were all there before it was known to have been taken is left no more.
TAKES = re.compile(
    rb"(?P<id>\w+) in (?P<early>\w+)&&\((?P=early)\[(?P=id)\]\.forEach\(\w+=>(?P<take>\w+)\(\w+\)\),"
    rb"delete (?P=early)\[(?P=id)\]\),(?P<rest>\w+\[(?P=id)\]=(?P=take),\w+\.add\((?P=id)\))"
)
TAKEN = (
    rb"if(\g<id> in \g<early>){let all=\g<early>[\g<id>];delete \g<early>[\g<id>];"
    rb"all.forEach(one=>\g<take>(one));if(all.some(one=>one.msg===`process_completed`))return}\g<rest>"
)
MENDS = {CLOSES: CLOSED, READS: READ, ENDS: ENDED, TAKES: TAKEN}


def mended(script: bytes) -> bytes:
    """One of Gradio's scripts without these faults."""
    for fault, mend in MENDS.items():
        script = fault.sub(mend, script)
    return script
