-- Mark in a partition that its features are being filled from a table of one source's past events, or have been.
--
-- KEYS[1]  {ns:p}:meta  read and written
-- ARGV     begin or end; owner, incarnation, source, digest of the table, event time in ms below which live events are in
--          the table or an empty text, the source's live topic
-- Returns  {'OK'} | {'GOING'}: begun before, and not ended | {'DONE'}: ended before
--          {'OTHER', digest}: filled from another table | {'LIVE'}: live events were counted already
--          {'FENCED'} | {'BEHIND'}
local verb, owner, incarnation, source, digest, before, topic = unpack(ARGV)
local meta, field = KEYS[1], 'backfill:' .. source
local stored = redis.call('HMGET', meta, 'owner', 'incarnation', field, 'position:' .. topic)
if not stored[1] or stored[2] ~= incarnation then return {'BEHIND'} end
if stored[1] ~= owner then return {'FENCED'} end
local running = digest .. ' running'
if stored[3] == digest then return {'DONE'} end
if stored[3] and stored[3] ~= running then return {'OTHER', stored[3]} end
if verb == 'end' then
  redis.call('HSET', meta, field, digest)
  return {'OK'}
end
if stored[3] then return {'GOING'} end
if stored[4] then return {'LIVE'} end
redis.call('HSET', meta, field, running)
if before ~= '' then redis.call('HSET', meta, 'before:' .. source, before) end
return {'OK'}
