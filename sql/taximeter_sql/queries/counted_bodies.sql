-- Which of these identities were counted, and with which body? Parameters: identities (hexadecimal, Array(String)).
SELECT lower(hex(identity)) AS identity_hex, lower(hex(body)) AS body_hex
FROM usage_log
WHERE disposition IN ('rated', 'unrated') AND identity IN (SELECT toFixedString(unhex(arrayJoin({identities:Array(String)})), 16))
