-- One step through the keys of a partition, or through the members of a set.
--
-- KEYS[1]  {ns:p}:meta      only to find the server
-- KEYS[2]  {ns:p}:…         the set; or a name that no key has: while the slot moves to another node, so that the node
--                           that is asked has only part of the keys, a script with a missing key is told to try again
-- ARGV     cursor, pattern of keys; an empty pattern: members of the set
-- Returns  {cursor, found, run id of the server}: a cursor means nothing to another server
local reply
if ARGV[2] == '' then
  reply = redis.call('SSCAN', KEYS[2], ARGV[1], 'COUNT', 1000)
else
  reply = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 1000)
end
return {reply[1], reply[2], string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')}
