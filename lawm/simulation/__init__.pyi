from lawm.simulation.pusht import PushTSimulator as PushTSimulator
from lawm.simulation.pusht import PushTSpec as PushTSpec
from lawm.simulation.pusht import encode_mp4 as encode_mp4
from lawm.simulation.pusht import pusht_settings as pusht_settings
from lawm.simulation.pusht import simulate_pusht as simulate_pusht
from lawm.simulation.replay import outcomes as outcomes
